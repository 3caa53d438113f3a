"""How arithmetic is made to give the same bytes: class `native-1` for now (design section 7)."""
