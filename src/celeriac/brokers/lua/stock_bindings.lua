-- Reads the bindings of an exchange, as kombu keeps them: <routing key><separator><pattern><separator><queue>.
--
-- ARGV  4 exchange

return call('SMEMBERS', PREFIX .. '_kombu.binding.' .. ARGV[4])
