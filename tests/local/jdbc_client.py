"""A JDBC program, run as a process of its own: ``jdbc_client.py LIBJVM URL JAR…``; prints what it saw as JSON.

The driver is used as any Java program would use it; JPype only carries the calls, so that no
Java compiler is needed.
"""

import json
import sys
from typing import Any

import jpype  # type: ignore[import-untyped]  # publishes no types

_TABLE = (
    "CREATE OR REPLACE TABLE jdbc_events (id UInt64, name String, at DateTime64(3, 'UTC'), price Decimal(38, 9),"
    " tags Array(String)) ENGINE = MergeTree ORDER BY id"
)
_INSERT = "INSERT INTO jdbc_events (id, name, at, price, tags) VALUES (?, ?, ?, ?, ?)"
_SELECT = "SELECT name, price, toString(tags) FROM jdbc_events WHERE id = ? AND name LIKE ? ORDER BY id"


def main(libjvm: str, url: str, *jars: str) -> dict[str, Any]:
    jpype.startJVM(libjvm, "-Xmx256m", "--enable-native-access=ALL-UNNAMED", classpath=list(jars), convertStrings=True)
    java_sql = jpype.JPackage("java").sql
    jpype.JClass("com.clickhouse.jdbc.Driver")
    seen: dict[str, Any] = {}
    with java_sql.DriverManager.getConnection(url) as connection:
        with connection.createStatement() as statement:
            statement.execute(_TABLE)
            rows = statement.executeQuery("SELECT number, toString(number) AS text FROM numbers(100000)")
            seen["columns"] = [rows.getMetaData().getColumnName(at) for at in (1, 2)]
            total = last = 0
            while rows.next():
                total += rows.getLong(1)
                last = rows.getString(2)
            seen["select"] = [total, last]
            empty = statement.executeQuery("SELECT 1 AS one WHERE 0")
            seen["empty"] = [empty.getMetaData().getColumnName(1), bool(empty.next())]
        with connection.prepareStatement(_INSERT) as insert:
            for number in range(1000):
                insert.setLong(1, number)
                insert.setString(2, f'it\'s \\ "{number}"\n\tü')
                insert.setTimestamp(3, java_sql.Timestamp(1_700_000_000_123 + number))
                insert.setBigDecimal(4, jpype.JClass("java.math.BigDecimal")(f"{number}.000000001"))
                insert.setArray(5, connection.createArrayOf("String", ["a'b", str(number)]))
                insert.addBatch()
            seen["batch"] = len(insert.executeBatch())
        with connection.prepareStatement(_SELECT) as select:
            select.setLong(1, 7)
            select.setString(2, "it's%")
            rows = select.executeQuery()
            rows.next()
            seen["prepared"] = [rows.getString(1), rows.getBigDecimal(2).toPlainString(), rows.getString(3)]
        with connection.createStatement() as statement:
            rows = statement.executeQuery("SELECT count(), sum(price) FROM jdbc_events")
            rows.next()
            seen["count"] = [rows.getLong(1), rows.getBigDecimal(2).toPlainString()]
        metadata = connection.getMetaData()
        seen["product"] = metadata.getDatabaseProductName()
        tables = metadata.getTables(None, "tally", "jdbc%", None)
        seen["tables"] = []
        while tables.next():
            seen["tables"].append([tables.getString("TABLE_SCHEM"), tables.getString("TABLE_NAME")])
        columns = metadata.getColumns(None, "tally", "jdbc_events", "%")
        seen["column_types"] = []
        while columns.next():
            seen["column_types"].append([columns.getString("COLUMN_NAME"), columns.getString("TYPE_NAME")])
        try:
            connection.createStatement().executeQuery("SELECT * FROM missing")
        except java_sql.SQLException as error:
            seen["error"] = [error.getErrorCode(), str(error.getMessage())]
    return seen


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
