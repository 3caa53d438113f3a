"""`kolm version`."""

from kolm_build.attest import trust
from kolm_build.core import derivation, kolmpack, lock, manifest, recipe, request
from kolm_build.store import layout
from kolm_build.store.remote import layout as remote
from kolm_build.surfaces.cli.version import FORMATS


def test_the_version_tells_the_newest_of_every_format():
    newest = {
        "artifact": int(manifest.ATTACHED_FORMAT.partition("/")[2]),
        "derivation": derivation.VERSION,
        "kolmpack": kolmpack.VERSION,
        "lock": lock.VERSION,
        "recipe": recipe.VERSION,
        "step-protocol": request.VERSION,
        "store": int(layout.FORMAT.split()[1]),
        "substituter": int(remote.FORMAT.split()[1]),
        "trust": trust.VERSION,
    }
    assert newest == FORMATS
