"""Values of the formats."""

from unicodedata import normalize

from hypothesis import strategies as st

from kolm_build.core.digest import Digest

texts = st.text(st.characters(codec="utf-8")).map(lambda text: normalize("NFC", text))
integers = st.integers(min_value=-(1 << 64), max_value=(1 << 64) - 1)
scalars = st.none() | st.booleans() | integers | st.binary(max_size=40) | texts
values = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=5) | st.dictionaries(texts, below, max_size=5),
    max_leaves=20,
)
json_integers = st.integers(min_value=-(1 << 53) + 1, max_value=(1 << 53) - 1)
json_values = st.recursive(
    st.none() | st.booleans() | json_integers | st.text(st.characters(codec="utf-8")),
    lambda below: (
        st.lists(below, max_size=5)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), below, max_size=5)
    ),
    max_leaves=20,
)
labels = st.from_regex(r"\A[a-z0-9]{1,6}(?:[-_.][a-z0-9]{1,6}){0,2}\Z")
entry_names = st.text(st.sampled_from("ab¢¥éX 3"), min_size=1, max_size=8) | st.sampled_from(
    ["¢dtreeX " + "a" * 32 + "dtypedtree", "¥bb3X " + "a" * 32 + "dexec", "a" * 23, "a" * 255]
)
"""Names of files, some of which hold what a tree's record is made of."""
digests = st.binary(min_size=32, max_size=32).map(Digest)
