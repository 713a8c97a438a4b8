"""
The conversion of each kind of object to JSON and arrays, and back.

``codec.py`` defines codecs, the encoder and the decoder; ``registry.py`` lists all codecs. To support another kind of
object, write a codec and add it to that list. To support another simulator, see ``simulators/``.
"""
