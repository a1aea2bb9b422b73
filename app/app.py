"""A Space's entry: the demo of the models that models.txt names, one a line, Hub ids or folders beside it."""

from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    from ddpm_hf.app.server import serve
    from ddpm_hf.devices import default_device

    names = (HERE / "models.txt").read_text(encoding="utf-8").split("\n")
    models = [str(HERE / name) if (HERE / name).is_dir() else name for name in names if name]
    serve(models, device=default_device())


if __name__ == "__main__":
    main()
