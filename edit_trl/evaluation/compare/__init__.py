"""`edit-trl compare`: runs against a baseline, with paired statistics and gates."""
