"""What `make render` raises beside the errors of the program."""

from job.errors import ThawError


class CannotRender(ThawError):
    """Kustomize is not there, or refuses the overlay; or what it renders is not a run."""
