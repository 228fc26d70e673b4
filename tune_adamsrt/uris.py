"""Paths and URIs of folders: one text that a local disk, a shared folder and a bucket have in common."""


def below(folder: str, name: str) -> str:
    """The path or URI of something in a folder. A URI keeps its query (an endpoint, a region) at the end."""
    place, mark, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"
