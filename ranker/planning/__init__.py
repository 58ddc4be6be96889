"""What a stage will need of chips that are not here."""
