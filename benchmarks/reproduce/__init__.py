"""What do the paper's experiments give, and what does the method give beyond them? (tables of cells)"""
