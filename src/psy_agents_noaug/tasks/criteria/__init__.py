"""The criteria task: is this criterion met in this text?"""
