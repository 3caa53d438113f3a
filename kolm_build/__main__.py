"""`python -m kolm_build` is `kolm`."""

from kolm_build.surfaces.cli import entry

if __name__ == "__main__":
    entry()
