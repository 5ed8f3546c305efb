"""From the exports of annotation tools to the tables of the data contract."""
