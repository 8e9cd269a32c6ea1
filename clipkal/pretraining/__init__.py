"""How the embedded model is made: a small CLIP trained from scratch on the captioned image world.

`model` says what it looks like, `stream` what it sees, `training` how it learns, `evaluation` what it can
then do without any example, and `release` what is shipped. The command `clipkal-pretrain`
(clipkal/pretrain.py) runs them.
"""
