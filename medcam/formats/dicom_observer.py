"""medcam as the observer of a document: a device, known by one UID a version."""

from __future__ import annotations

import uuid

from highdicom import sr
from pydicom.sr.codedict import codes

from medcam import __version__


def observer() -> sr.ObserverContext:
    """Return who observed what a document says: no person, but medcam."""
    uid = uuid.uuid5(uuid.NAMESPACE_URL, f"https://medcam-xai.readthedocs.io/{__version__}")
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=f"2.25.{uid.int}",
            name="medcam",
            manufacturer_name="medcam",
            model_name="medcam",
            serial_number=__version__,
        ),
    )
