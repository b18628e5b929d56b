"""Images with objects: COCO's JSON, its images, and the samples that a detector trains and is measured on."""
