"""Keys of the services that public connectomes come from."""

from __future__ import annotations

from lacuna_nipype.connectomes.public import ConnectomeSource, find_source
from lacuna_nipype.core.exceptions import AuthenticationError
from lacuna_nipype.remote.credentials import Service, find_key, key_advice
from lacuna_nipype.remote.download import Header


def service_of(source: ConnectomeSource) -> Service | None:
    """Name the service whose key the download of a connectome needs, if any."""
    return source.source_type if source.source_type in ("dataverse", "figshare") else None


def key_is_missing(name: str) -> bool:
    """Whether a connectome needs a key that is neither in the environment nor configured."""
    service = service_of(find_source(name))
    return service is not None and find_key(service) is None


def key_header(source: ConnectomeSource, api_key: str | None) -> Header | None:
    """Make the header that carries the key.

    Parameters
    ----------
    source : ConnectomeSource
    api_key : str, optional
        Else that of the environment or of the configuration file.

    Returns
    -------
    Header or None
        None where no key is needed.

    Raises
    ------
    AuthenticationError
        A key is needed, and there is none.
    """
    from lacuna_nipype.remote.services import DATAVERSE_FIELD, FIGSHARE_FIELD, FIGSHARE_PREFIX

    service = service_of(source)
    if service is None:
        return None
    secret = find_key(service, api_key)
    if secret is None:
        raise AuthenticationError(
            f"{source.display_name}", f"a key is needed; {key_advice(service)}."
        )
    if service == "dataverse":
        return Header(DATAVERSE_FIELD, secret)
    return Header(FIGSHARE_FIELD, secret, FIGSHARE_PREFIX)
