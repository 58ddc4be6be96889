"""Online evaluation: from a log of pages and clicks to a decision, without jax.

`events` reads a log, `pages` makes pages and users of it, `measures` says what is
measured and `estimates` how sure that is; `experiment`, `preference`, `planning` and
`sidebyside` are the commands ab, interleave, power and aa, and gsb. `interleaving` has
the pure functions that a server calls. `clickmodels`, `counterfactual` and `simulate`
learn from clicks, re-use them and make them up.
"""
