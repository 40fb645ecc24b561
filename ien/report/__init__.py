"""What is measured of trained networks, and how is it told? (`python -m ien.evaluate`)"""
