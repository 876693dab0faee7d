"""`python -m nbbce`."""

from nbbce.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
