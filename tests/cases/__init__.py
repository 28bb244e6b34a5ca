"""Inputs and procedures on which medssl was once silently wrong or refused unfairly, with the right answer of each.

A module makes its input with `build(folder)` and knows what is right from arithmetic or a standard, never from medssl;
or it carries out a procedure with `run(medssl, folder)` and returns what is expected and what was found.
"""
