"""Instantiation: recipe and lock become derivations (spec/recipe.md, section "Nodes").

Pure: what a step is comes in as a table, the machine as a value, the story of the build as a
function, since it is an object that only a store can keep. Each node's digest is computed once,
here, and travels with it.
"""
