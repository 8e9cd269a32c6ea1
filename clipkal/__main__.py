"""`python -m clipkal` is the command `clipkal`."""

from clipkal.cli import main

if __name__ == "__main__":
    main()
