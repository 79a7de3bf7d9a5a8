"""Collection of answers for training, off the requests' path; on only with ``--distil.dir``."""
