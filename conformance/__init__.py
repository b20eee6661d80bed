"""A public suite that asks any gateway in front of scripted backends: is it faithful, is it honest?"""
