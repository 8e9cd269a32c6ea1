"""The predictives: how class probabilities are read out of a learnt model, one file each.

plugin.py           the softmax at the learnt parameters
sampled.py          the mean softmax over draws from the posterior
probit.py           closed form: logits shrunk by their variance
laplace_bridge.py   closed form: a Dirichlet distribution of the probabilities
novelty.py          a mixture with zero-shot, by how unlike the shots an image is
range_matched.py    the plug-in with each image's logits in the range that zero-shot gave them
tempered.py         zero-shot at a temperature fitted on the shots
"""
