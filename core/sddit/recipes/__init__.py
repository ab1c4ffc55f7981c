"""Recipes: load -> extends -> override -> validate -> resolved recipe. Nothing here imports torch."""
