"""A DICOM node that classifies what it receives: `medimg-run listen`; see ARCHITECTURE.md."""
