"""`sdtui serve`: the same app in a browser, for nobody but its owner."""
