"""How arithmetic is made to give the same bytes: `portable-1` and `native-1` (design section 7)."""
