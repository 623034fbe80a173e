"""Sending to a PACS: over the DICOM protocol (C-STORE) or over the web (STOW-RS), from a queue on disk that survives a kill;
and a node of that network, which receives, has explained, and sends on."""
