"""The evidence task: which words of the post show it?"""
