"""Pictures and their files: opening, sizes, masks, the canvas of an edit, writing, recipes."""
