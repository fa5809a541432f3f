"""`python -m dco_trl …` is `dco-trl …`, for launchers that want a module: `accelerate launch -m dco_trl train …`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
