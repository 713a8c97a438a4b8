"""
How each kind of object becomes JSON and arrays, and comes back.

``codec.py`` says what a codec is and has the encoder and decoder; ``registry.py`` lists all codecs. To support another kind of
object, write a codec and add it to that list. To support another simulator, see ``simulators/``.
"""
