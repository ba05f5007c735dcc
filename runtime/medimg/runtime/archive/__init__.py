"""An archive of many images, classified by workers on one machine or on a Ray cluster."""
