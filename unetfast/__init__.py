"""unetfast: from a folder of images and masks to a trained U-Net."""
