"""`medssl demo`: phantoms, the whole road on them, and a page that shows how it went."""
