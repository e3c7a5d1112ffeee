"""What a node sends, recorded and searched for pieces of its owner's data.

* `marks.py` makes rows that no honest byte resembles, and all forms in which they could travel.
* `recorder.py` is `python -m node` with everything it writes to a socket kept in a file: the bytes of its own protocols
  and of the DHT before the network daemon encrypts them.
"""
