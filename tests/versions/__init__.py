"""Old and new: files and words as earlier versions wrote them, and peers of other versions."""
