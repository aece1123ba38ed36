"""The steps, each in a module of its own with one constant `STEP`; `catalogue.py` finds them."""
