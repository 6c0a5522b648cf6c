"""From bare pictures to a captioned data set: captioners, tags, metadata, and a journal that undoes every change."""
