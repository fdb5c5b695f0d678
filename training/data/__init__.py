"""From wherever images and masks lie to samples."""
