"""What is read of a finished run: its values, the page, the model card, and the rows of the closing table.

Built from values alone: it measures nothing, stores nothing, and knows no TensorFlow.
"""
