"""Paths and URIs of folders: one text that a local disk, a shared folder and a bucket have in common."""

import re

# In a URI: user:password@ (a password may hold a slash), a user of S3, or a secret in the query.
CREDENTIALS = re.compile(
    r"^(?:[a-z0-9+.-]+://[^/?@]*:[^?@]*@|s3://[^/?]*@|[^?]*://[^?]*\?.*?\w*(?:key|secret|password|token|sig)\w*=)",
    re.IGNORECASE,
)


def below(folder: str, name: str) -> str:
    """The path or URI of something in a folder. A URI keeps its query (an endpoint, a region) at the end."""
    place, mark, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def check_holds_no_credentials(option: str, uri: str) -> None:
    """Raise ValueError where a URI holds credentials, which the study and MLflow would keep."""
    if CREDENTIALS.search(uri):
        raise ValueError(
            f"{option} must hold no credentials, got {uri.partition(':')[0]}://***, which the study would keep; leave "
            "them to the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or to the machines' own role"
        )
