"""Teacher scores of many pairs: what is scored, the job, its proof and its status."""
