"""The room of the command `clipkal-data`: which datasets there are, whether yours are whole, and what they look like.

`catalogue` reads `conf/dataset/`, `facts` knows how many images each public dataset has, `check` compares them
with the disk and decodes every image, `shots` draws what a run would draw, and `sheet` makes a picture of it.
"""
