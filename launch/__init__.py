"""How does a run come to the machines?"""
