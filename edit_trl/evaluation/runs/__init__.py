"""An evaluation run: its folder, its schema, its scores as tables, its history."""
