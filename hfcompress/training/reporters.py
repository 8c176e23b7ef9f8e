"""What a training can report to: names and packages, of which nothing is imported."""

from importlib.util import find_spec

from hfcompress.errors import UserError

REPORTERS = {  # of the Trainer's callbacks (transformers.integrations), and the packages of which it wants one
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def require_reporter(name: str) -> None:
    """Refuse what the Trainer does not report to, and what is not installed; nothing of it is imported.

    Raises:
        UserError: naming those that there are, or the package.
    """
    if name in ("none", "all"):
        return
    if name not in REPORTERS:
        raise UserError(f"--*.report-to {name}: choose from none, all, {', '.join(REPORTERS)}")
    if not any(find_spec(package) for package in REPORTERS[name]):
        raise UserError(f"--*.report-to {name}: pip install {REPORTERS[name][0]}, or leave the option out")
