"""A sweep's database: calls wait for a server that is away for a while, and its password is never printed."""

import functools
import logging
import time

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from hub_unets.training.errors import UserError
from hub_unets.training.settings.publishable import without_password

PATIENCE_SECONDS = 600
POLL_SECONDS = 2
METHODS = (  # of optuna.storages.BaseStorage, that a worker's calls end in
    "create_new_study",
    "create_new_trial",
    "get_all_studies",
    "get_all_trials",
    "get_best_trial",
    "get_n_trials",
    "get_study_directions",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "get_trial_number_from_id",
    "get_trial_params",
    "get_trial_system_attrs",
    "get_trial_user_attrs",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_system_attr",
    "set_trial_user_attr",
)


def open_storage(url):
    """Optuna's storage at a URL, whose calls wait for a server that does not answer.

    Raises:
        UserError: the URL is none, its driver is not installed, or nothing answers there.
    """
    try:
        storage = optuna.storages.get_storage(url)
    except Exception as error:  # each database has its own
        reason = without_password((str(error).strip().splitlines() or [type(error).__name__])[0])
        cure = ": pip install 'hub-unets[sweep]' brings PostgreSQL's" if isinstance(error, ImportError) else ""
        raise UserError(f"storage {without_password(url)!r} can't be opened: {reason}{cure}") from error
    for name in METHODS:
        setattr(storage, name, _patient(getattr(storage, name), without_password(url)))
    return storage


def _patient(call, shown_url):
    """The call, repeated for up to PATIENCE_SECONDS while the server is away."""

    @functools.wraps(call)
    def patient(*arguments, **options):
        started, is_repeated = time.monotonic(), False
        while True:
            try:
                return call(*arguments, **options)
            except UpdateFinishedTrialError:
                if is_repeated:  # the first call was heard, and its answer was lost
                    return True
                raise
            except StorageInternalError as error:
                if time.monotonic() - started > PATIENCE_SECONDS:
                    raise OSError(
                        f"the sweep's database, {shown_url}, has not answered for {PATIENCE_SECONDS // 60} minutes: "
                        "repeat the command when it does; finished trials are not trained again."
                    ) from error
                if not is_repeated:
                    print(f"The sweep's database, {shown_url}, does not answer: waiting for it.", flush=True)
                is_repeated = True
                time.sleep(POLL_SECONDS)

    return patient


def quiet_optuna():
    """Silence Optuna's and SQLAlchemy's logs: they would print a traceback and the URL of a server that is away."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
