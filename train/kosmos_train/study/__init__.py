"""Studies: objectives compared at equal cost, by one command."""
