"""How fast is it, and how good, side by side with what a user would take instead?"""
